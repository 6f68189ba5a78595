"""Computer vision beyond classification: boxes, detection and image generation.

Empty in this version: YOLOv8 and Stable Diffusion come with part 5 of the project (see the README).
"""
