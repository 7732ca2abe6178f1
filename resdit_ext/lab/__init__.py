"""The lab: a micro FLUX trained from scratch on drawn scenes, to see and measure the method without a GPU."""
