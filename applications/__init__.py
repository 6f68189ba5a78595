"""Image classifiers by name, with Keras' constructors: `applications.ResNet50(weights="imagenet")`.

Empty in this version: the first families come with part 3 of the project (see the README).
"""
