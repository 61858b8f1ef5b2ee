"""The embedded S3 and MLflow of one machine, and the check of what a run needs of them."""
