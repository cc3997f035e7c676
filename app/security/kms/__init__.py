"""AWS KMS: envelope encryption, its key service, the data-key cache, and setup."""
