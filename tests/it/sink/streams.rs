//! Streams that are full, deleted, changed, or not what the events need.
