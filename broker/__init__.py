"""The federation: RabbitMQ topology, lookup, events and the embedded broker."""
