"""Where judgments come from: rules, reward models, language models, and principles written down."""
