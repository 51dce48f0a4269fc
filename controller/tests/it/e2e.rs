//! The product as a whole, on real Docker: what people do, what goes wrong, and what must not happen.

mod caches;
mod cancel;
mod claude;
mod derived;
mod drift;
mod engine_trouble;
mod failures;
mod fleet;
mod gitlab;
mod hosts;
mod parallel;
mod publishing;
mod restarts;
mod scene;
mod submission;
mod tokens;
