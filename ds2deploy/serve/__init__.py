"""A server: live streams and uploads of many callers, over HTTP and WebSockets."""
