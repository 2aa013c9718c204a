//! Programs that were linked with this library look for this version of it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libringfort.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
