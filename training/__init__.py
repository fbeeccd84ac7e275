"""What only training and evaluation need. It imports `models`; `models` never imports it."""
