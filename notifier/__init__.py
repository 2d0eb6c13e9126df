"""Events in, mail out: the process that tells people what happened."""
