"""A federation of two hosts shown at work, and the link proxy that cuts its wire."""
