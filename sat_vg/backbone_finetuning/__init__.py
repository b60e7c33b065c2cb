"""Fine-tune a torchvision backbone on satellite images and hand it over as a feature extractor."""
