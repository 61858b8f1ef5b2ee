"""Objects in S3: content-addressed trees, leases and heartbeats by conditional puts."""
