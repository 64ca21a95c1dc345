"""An HTTP server with OpenAI's endpoints (`plamo2 serve`)."""
