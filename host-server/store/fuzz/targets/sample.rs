#![no_main]

#[allow(dead_code)] // the other targets'
#[path = "../entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::sample(bytes));
