"""Tests; the folders mirror the three floors."""
