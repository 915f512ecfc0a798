"""What fills the page: a model that answers its questions, the file that holds all answers, and the live server."""
