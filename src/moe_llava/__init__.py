"""moe-llava: sparse vision-language models by MoE-Tuning."""
