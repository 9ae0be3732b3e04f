"""Bundles from elsewhere and to elsewhere: registries of containers, buckets, web servers, the
Hugging Face Hub, and folders (needs the extra ``pull``).
"""
