"""Chapter TEMPLATE_TITLE: what it computes and draws."""
