#![no_main]

use ringfort_frontend::virtiofs::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::request(bytes));
