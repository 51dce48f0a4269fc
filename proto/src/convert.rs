//! Wire to vocabulary and back.
