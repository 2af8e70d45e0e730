"""Server for live streams and uploads of many clients, over HTTP and WebSockets."""
