"""Joins the binlog to the log: capture, certification, reconciliation and apply."""
