//! One contract for every forge, and what each of them does when it is refused, delayed or cut off.

mod stand_in;
