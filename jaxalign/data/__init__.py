"""From files of text to packed batches of tokens; numpy only."""
