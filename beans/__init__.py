"""Middle tier: one Celery worker per bean per host, and the proxies that call them."""
