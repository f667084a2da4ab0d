"""The parts of one decoder layer. Every parameter carries its logical axes."""
