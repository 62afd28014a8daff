"""What travels between processes: plain data, no behaviour."""
