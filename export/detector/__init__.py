"""A detector of one's own, trained from nothing on pictures with COCO boxes."""
