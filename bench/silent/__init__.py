"""Silent-Bench: fine-tunings that stay finite and learn nothing, from public reports, and honest ones like them."""
