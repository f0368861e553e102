//! Ways for messages to travel between managers.
