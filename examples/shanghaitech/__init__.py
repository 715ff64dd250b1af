"""Crowd counting on ShanghaiTech A."""
