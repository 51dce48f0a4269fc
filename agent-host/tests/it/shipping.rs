//! Shipping to a controller that dies, forgets, refuses and damages.
