"""Why a run failed, waits or hangs: from what is known of its ranks to sentences. Pure."""
