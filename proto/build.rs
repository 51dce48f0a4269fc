//! Generates the wire types and the descriptor set that reflection serves.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("devfleet.bin");
    let files = ["types", "jobs", "fleet", "session"].map(|name| format!("devfleet/v1/{name}.proto"));
    tonic_prost_build::configure().file_descriptor_set_path(descriptors).compile_protos(&files, &[".".to_owned()])?;
    Ok(())
}
