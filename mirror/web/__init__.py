"""The HTTP side: smart HTTP for readers, webhooks for forges, status for operators."""
