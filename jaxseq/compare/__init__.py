"""The main job: architectures of equal size trained on the same text, side by side, and what they cost."""
