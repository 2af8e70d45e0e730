"""Audio files and raw audio to float32 samples at the sample rate of the model."""
