"""What several test modules share: real servers, mostly."""
