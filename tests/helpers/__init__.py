"""What several tests share; a helper of one test lies in its file."""
