"""What a model's answers are worth beside its reference's: measured, recorded, and let through or not."""
