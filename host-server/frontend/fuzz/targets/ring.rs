#![no_main]

use ringfort_frontend::channel::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::ring(bytes));
