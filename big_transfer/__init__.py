"""What does pre-training buy downstream, and where does it stop paying?"""
__version__ = "0.1.0"
