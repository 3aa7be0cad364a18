"""The Git wire protocol, sans-IO: bytes in, values out, and back."""
