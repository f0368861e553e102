//! The shim as a binary of its own, for the engine's tests. The product runs it as `shoal shim`.

fn main() {
    shoal_engine::shim::main(std::env::args_os())
}
