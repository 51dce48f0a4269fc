//! Part of the controller.
