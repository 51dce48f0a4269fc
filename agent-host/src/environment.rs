//! Part of the host daemon.
