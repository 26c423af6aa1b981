//! Scripted walsenders.
