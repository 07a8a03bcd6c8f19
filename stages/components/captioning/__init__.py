"""Captioning: vision-language models, questions, journals and caches."""
