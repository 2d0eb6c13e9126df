"""Upper tier: what an administrator types and sees."""
